"""A page in the browser, for what models can do: `--mode=serve`."""

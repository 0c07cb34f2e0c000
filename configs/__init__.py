"""The YAML files of every stage, size and trainer; installed as `llama2_pl.configs` so that a wheel carries them."""

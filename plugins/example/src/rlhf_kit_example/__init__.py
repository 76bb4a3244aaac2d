"""An example plugin for rlhf-kit: reward `brevity`, policy loss `gspo`, advantage `rloo`."""

"""On-policy training: PPO with a pretraining mix, and its parts."""

"""What is wrong with a configuration: findings, and the place of each."""

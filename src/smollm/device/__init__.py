"""Where training runs: hardware, the group of processes, random seeds."""

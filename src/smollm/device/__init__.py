"""Where training runs: hardware, the group of processes, random seeds. Imports `config`; all that trains imports it."""

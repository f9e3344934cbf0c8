"""Where training runs: hardware, the group of processes, random seeds. Imports `config`; `model`, `operate` and
`training` import it."""

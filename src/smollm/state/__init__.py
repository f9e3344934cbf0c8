"""What survives a kill: the live state of a running stage, its journal, token files, files written atomically, and
the fingerprint that decides whether a stage can resume."""

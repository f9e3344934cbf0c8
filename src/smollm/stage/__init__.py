"""What all stages have in common: begin, resume, publish outputs and reports, end.

Imported by `corpus` and `training`.
"""

"""params.yaml as typed, validated, frozen dataclasses, one file per section.

Imports only `errors`; anything may import it.
"""

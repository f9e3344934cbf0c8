"""params.yaml as typed, validated, frozen dataclasses, one file a section.

Imports only `errors`; anything may import it.
"""

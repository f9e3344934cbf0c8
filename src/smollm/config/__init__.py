"""params.yaml as typed, validated, frozen dataclasses: one file a section, no torch."""

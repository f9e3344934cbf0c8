"""The presets, and the keys of their settings."""

from support.structure import ROOT

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
SMOLLM_135M = ROOT / "presets" / "smollm-135m.yaml"


def setting_paths(values: object, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of keys to each setting of a params file's `values`."""
    if isinstance(values, dict):
        return [path for key, value in values.items() for path in setting_paths(value, (*where, key))]
    return [where]

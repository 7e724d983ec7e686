"""Setups (a world: data, networks, recipes, priors, budgets) and studies (defences x attacks x seeds), in YAML."""

from lib.setups.schema import (
    DataConfig,
    NetworkConfig,
    Setup,
    SourceConfig,
    Study,
    load_setup,
    load_study,
    name_of,
    setup_names,
)

__all__ = [
    "DataConfig",
    "NetworkConfig",
    "Setup",
    "SourceConfig",
    "Study",
    "load_setup",
    "load_study",
    "name_of",
    "setup_names",
]

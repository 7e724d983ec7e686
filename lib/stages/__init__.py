"""Stages of a setup: data, targets, priors, attacks and what is measured of them, each made once and stored."""

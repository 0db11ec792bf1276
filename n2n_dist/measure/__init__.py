"""Estimators that the audit and the builder share: noise, clipping, displacement. numpy only."""

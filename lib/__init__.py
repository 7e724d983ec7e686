"""Random erasing against model inversion: dataset -> target -> prior -> attack -> evaluation -> features -> results."""

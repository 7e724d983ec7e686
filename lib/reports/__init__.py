"""What the notebooks show: a workbook that they share and a report for each, from stored stages."""

"""Videos of one person with what drives them: readers of the layouts in which such data sets are released."""

"""One training from several initial weights, compared under equal budgets (paper, section 4.2)."""

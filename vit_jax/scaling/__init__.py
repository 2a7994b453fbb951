"""Scaling laws: from a table of runs to a law that can be trusted, or a reason why not.

laws          the laws, by their papers' letters; adding one is adding a table of its terms
pareto        which runs no other run beats
varpro        where a fit starts: variable projection
solver        thousands of small robust fits at once, float64, within bounds
fitting       a law fitted to runs, and how well its letters are determined
profile       how far a quantity can move before the law no longer fits
intervals     of letters, predictions and optima, by the profile; bootstrap: for comparison
selection     laws chosen by held-out scales; may this be extrapolated?
optima        compute-optimal parameters and examples, the best shape
curves        where two models cross, how many more images one needs
isoflop       valleys at each budget, their optima and their bias
"""

"""A scaling study: from a sweep's runs to a law that can be trusted, or a reason why not.

The table of runs
table         read from a .parquet or .csv file, ours or anybody's
csv_tables    CSV files: separators, decimal commas

Laws
laws          the laws, by their papers' parameters; adding one is adding a table of its terms
varpro        where a fit starts: variable projection
solver        thousands of small robust fits at once, float64, within bounds
fitting       a law fitted to runs, and how well its parameters are determined
profile       how far a quantity can move before the law no longer fits
intervals     of parameters, predictions and optima, by the profile
bootstrap     fits to rows or clusters drawn again, for comparison
goodness_of_fit      does the form of a law hold?
selection     laws chosen by held-out scales; may this be extrapolated?

What they say to do
pareto        which runs no other run beats
optima        compute-optimal parameters and examples, the best shape
curves        where two models cross, how many more images one needs
isoflop       valleys at each budget, their optima and their bias

`python -m vit_jax.fit`
question      what is asked of a table
expressions   columns computed from columns, such as 1-top1
query         which rows count
answer        a group of rows, and what is fitted to it
study         all that is said
drawing       the figures that an answer calls for
plots         draws them
report        as text and as a page
"""

"""Scaling laws: fits, intervals, model selection, and the optima that they imply.

Input
table            reads a table of runs from a .parquet or .csv file
csv_tables       CSV files: separators, decimal commas, percent signs

Laws
laws             the laws, with their papers' parameters, each a table of terms
method           how a law is fitted: loss, bounds, initial values
varpro           initial values of a fit, by variable projection
solver           thousands of small robust fits at once, in float64, within bounds
rows             the rows of a fit: checked, in logs
fitting          fits a law to runs; reports how well its parameters are determined
profile          profile likelihood
intervals        profile intervals of parameters, predictions and optima
bootstrap        fits to resampled rows or clusters, for comparison
goodness_of_fit  test of a law's form (lack of fit)
selection        model selection by held-out larger scales
extrapolation    whether the data support a prediction

Conclusions
pareto           the Pareto frontier of runs
optima           compute-optimal parameters and examples, the best shape
curves           crossings of two curves, ratios of data sizes
isoflop          parabolas at each budget, their optima and their bias

`vit-jax fit`
columns          the default columns of the inputs of laws
question         a law, its columns, and the rows to use
expressions      columns computed from columns, such as 1-top1
query            selects and groups rows
answer           the data of a group of rows, and the law fitted to it
error_rates      notes on chance level and the largest possible error
growth           whether y grows with scale, as accuracies do
entries          the report's numbers of a group of rows
study            the complete result
drawing          prepares the figures of a result
plots            draws the figures
numbers          numbers and intervals as text
summary          the answer in one sentence, and whether to trust it
report           the result as text
page             the result as an HTML page
fit              fit_law: a table in, fitted laws out; writes the result, the figures and the page
"""

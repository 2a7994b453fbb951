"""Any trained or published model on any images.

evaluate  evaluates the model of a run, and writes the results
predict   predicts the classes of images
"""

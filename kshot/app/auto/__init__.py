"""`kshot auto`: choose a learner, a model and their settings for a data set within a time limit."""

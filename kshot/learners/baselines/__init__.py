"""Learners without meta-learning, which a learner must beat to be worth its cost.

`simple` suits any tasks. Each other module has the methods that a practitioner of a field would use, as a function
`baselines(source, ...)`: name -> a function that fits them to the training split and gives the candidates among which
validation tasks choose.
"""

"""A reward that costs nothing, for recipes/bench.yaml: it does not even look at the text."""


def reward(samples):
    return [float(row % 2) for row in range(len(samples))]

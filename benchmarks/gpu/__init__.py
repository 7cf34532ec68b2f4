"""Models of real shapes with random weights on one GPU: tokens a second and peak memory, beside other tools."""

"""Speed and quality, measured against named peers; ratios taken in one run."""

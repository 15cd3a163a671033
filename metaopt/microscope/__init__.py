"""Looking closely: the doctor and its advice, inner runs step by step, divergence capsules."""

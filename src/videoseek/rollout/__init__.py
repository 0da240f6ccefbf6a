"""Episodes: the environment that answers the model's turns, and the engines that sample them."""

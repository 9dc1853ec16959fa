"""alphapo: what does the shape of the reward do to preference training?"""

__version__ = "0.1.0"

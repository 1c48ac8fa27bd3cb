"""itm_lib: image-text matching, from pixels to trained retrieval models.

Imports point one way: data, features <- models, losses <- evaluation <- training <- search, cli.
"""

__version__ = "0.1.0"

"""itm_lib: image-text matching, from pixels to trained retrieval models.

Imports point one way: data, features <- models, losses <- evaluation <- training <- search, cli.
"""

from itm_lib import threads

__version__ = "0.1.0"

threads.prepare()  # memory and threads, before torch is loaded: see itm_lib.threads

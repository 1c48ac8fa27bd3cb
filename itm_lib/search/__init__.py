"""A trained model as a search over pictures: index them, ask with words or a picture, look at what was found.

    index = build_index("runs/mine", "data/mine", "runs/search")
    result = SearchIndex.open("runs/search").query("a dog left of a red car")
    contact_sheet(result, "sheet.png")
"""

from itm_lib.search.attended import Region
from itm_lib.search.index import SearchIndex, build_index
from itm_lib.search.query import Hit, Result
from itm_lib.search.sheet import contact_sheet
from itm_lib.search.vectors import KINDS, VectorSettings

__all__ = ["KINDS", "Hit", "Region", "Result", "SearchIndex", "VectorSettings", "build_index", "contact_sheet"]

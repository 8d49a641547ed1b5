"""Does interaction distillation help on these data? Models of recipes that differ, on pairs that none was trained on.

Data flow: recipes (`arms`) and the rows to score (`data`) -> teachers that are yet to be fitted (`teachers`) -> one
training per recipe and seed, each in a process of its own (`runs`) -> rewards (`scoring`) -> accuracies and paired
differences with intervals over pairs and seeds (`statistics`, `summary`) -> `Comparison` (`result`) -> `report`.
"""

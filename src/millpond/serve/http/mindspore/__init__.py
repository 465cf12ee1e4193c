"""MindSpore Serving's REST protocol: `POST /model/NAME[/version/V]:METHOD`."""

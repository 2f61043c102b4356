"""Benchmarks: each module answers the question in its first line, beside a floor and a reference of the same minutes.

Rule: a figure that counts is a ratio; CPU, and ratios of it, stay steady on a machine that others use, too.

``python -m benchmarks`` runs the short set, as ``make bench`` does; ``budget`` and ``soak`` are what is promised;
``workers`` lays one worker beside two, ``compare`` two results side by side; ``rig`` is what they are made of;
``results`` holds those that the documentation shows, in ``docs/explanation/performance.md``.
"""

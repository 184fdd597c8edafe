"""Has a language model explain what ``recompute_window`` wrote: prompt, call, rate limits, budget, answer.

:func:`worker.explain.window.explain` puts them together; the actor is :func:`worker.llm.explain_window`.
"""

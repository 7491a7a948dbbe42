"""The page itself, which Streamlit runs: where its screens are, and what each of them stands on."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import streamlit as st

from orchestration.dashboard import fraud, maintenance, segmentation, system
from orchestration.dashboard.published import MovedError, Published, Reading
from orchestration.errors import MendableError
from orchestration.settings import load_settings


@st.cache_resource(show_spinner=False)
def _published() -> Published:
    return Published(load_settings())


# Not for ever: who is erased from a release must not stay on the page.
@st.cache_data(show_spinner=False, max_entries=200, ttl="5m")
def _rows(release: str, query: str) -> pl.DataFrame:
    return _published().rows(release, query)


def _shown(show: Callable[[Reading], None]) -> Callable[[], None]:
    def screen() -> None:
        try:
            reading = Reading(_published().releases(), _rows)
            release = reading.release
            st.caption(
                f"Release {release.name} of {release.released_at:%-d %B %Y, %H:%M} UTC"
                f" · {release.checks_passed:,} checks passed"
            )
            show(reading)
        except MovedError:
            st.rerun()
        except MendableError as error:
            st.error(f"**{error.thing}**: expected {error.expected}; {error.arrived}.")
            st.markdown(f"To mend it: `{error.mend}`")

    return screen


st.set_page_config(page_title="Watershed", layout="wide")
st.html(
    "<style>[data-testid=stMetricValue]{font-size:1.7rem} h1{font-size:1.7rem!important}"
    "h3{font-size:1.25rem!important} [data-testid=stMainBlockContainer]{padding-top:4rem}</style>"
)
st.navigation(
    [
        st.Page(_shown(module.show), title=title, url_path=path, default=not path)
        for module, title, path in (
            (segmentation, "Customers", ""),
            (fraud, "Fraud", "fraud"),
            (maintenance, "Machines", "machines"),
            (system, "System", "system"),
        )
    ],
    position="top",
).run()

"""The privacy report: the signed `privacy.json`, and the pages that are made of it and of nothing else.

`files` writes and reads it, `document` is what it says as one typed object, `page` and `markdown` show that.
"""

from lightning_dp.privacy.report.files import (
    REPORT_NAME,
    json_ready,
    read_privacy_report,
    replace_text,
    sync_folder,
    write_privacy_report,
)

__all__ = [
    "REPORT_NAME",
    "json_ready",
    "read_privacy_report",
    "replace_text",
    "sync_folder",
    "write_privacy_report",
]

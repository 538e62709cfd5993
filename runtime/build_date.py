"""The date of this software, before which no clock is right. Set with each release, by hand or by packaging."""

from datetime import UTC, datetime

BUILD_DATE = datetime(2026, 11, 28, tzinfo=UTC)

# All flags of HEALTHCHECK, in nanoseconds in the config.
# expect: config Healthcheck {"Test": ["CMD", "ok"], "Interval": 90000000000, "Timeout": 3000000000, "StartPeriod": 60000000000, "StartInterval": 500000000, "Retries": 4}
FROM scratch
HEALTHCHECK --interval=1m30s --timeout=3s --start-period=1m --start-interval=500ms --retries=4 CMD ["ok"]

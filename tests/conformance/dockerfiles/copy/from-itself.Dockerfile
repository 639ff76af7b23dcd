# A stage can't copy from itself.
# expect: fails "circular dependency" at "COPY --from=self"
FROM scratch AS self
COPY --from=self /a /b

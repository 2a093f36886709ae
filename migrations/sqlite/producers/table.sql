CREATE TABLE IF NOT EXISTS {table} (
  mid INTEGER PRIMARY KEY AUTOINCREMENT,
  mto TEXT NULL,
  msubject TEXT NULL,
  mbody TEXT NULL,
  mheaders TEXT NULL{mparams}
)

-- The logins of a new deployment, none of which row-level security lets through: a superuser would see every tenant.
-- For psql, as a superuser, once, before the first `worker migrate`; compose.yaml has Postgres' image run it. The
-- passwords come from the environment.
\set ON_ERROR_STOP on
\getenv release_password RELEASE_PASSWORD
\getenv worker_password WORKER_PASSWORD
\getenv operator_password OPERATOR_PASSWORD

CREATE ROLE app_user NOLOGIN;
CREATE ROLE app_operator NOLOGIN;

-- Owns the tables, and is used by `worker migrate` alone.
CREATE ROLE release_login LOGIN PASSWORD :'release_password';
-- Workers and whoever is bound to one tenant.
CREATE ROLE worker_login LOGIN PASSWORD :'worker_password' IN ROLE app_user;
-- Work across tenants: the console, commands, retention.
CREATE ROLE operator_login LOGIN PASSWORD :'operator_password' IN ROLE app_operator;

ALTER DATABASE :"DBNAME" OWNER TO release_login;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO app_user, app_operator;

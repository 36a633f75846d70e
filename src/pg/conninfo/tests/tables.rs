//! Connection strings and what becomes of them.

/// Tried on libpq 5.15 through `PQconnectStartParams` with `expand_dbname`, as psql calls it.
pub(super) const ACCEPTED: &[(&str, &str)] = &[
    ("", "host=/var/run/postgresql port=5432 user=me dbname=me"),
    ("mydb", "host=/var/run/postgresql port=5432 user=me dbname=mydb"),
    ("my db", "host=/var/run/postgresql port=5432 user=me dbname='my db'"),
    ("dbname=shop", "host=/var/run/postgresql port=5432 user=me dbname=shop"),
    ("host=localhost", "host=localhost port=5432 user=me dbname=me"),
    (
        "host = localhost  port = 25000",
        "host=localhost port=25000 user=me dbname=me",
    ),
    (
        "  host=localhost\tport=25000  ",
        "host=localhost port=25000 user=me dbname=me",
    ),
    (
        "host='localhost'port=25000",
        "host=localhost port=25000 user=me dbname=me",
    ),
    (
        r"host=localhost user=o\'brien",
        r"host=localhost port=5432 user='o\'brien' dbname='o\'brien'",
    ),
    (
        r"host=localhost user='o\'brien' dbname='a\\b'",
        r"host=localhost port=5432 user='o\'brien' dbname='a\\b'",
    ),
    (
        r"host=localhost dbname=a\\b",
        r"host=localhost port=5432 user=me dbname='a\\b'",
    ),
    (
        r"host=localhost dbname=a\ b",
        "host=localhost port=5432 user=me dbname='a b'",
    ),
    ("host=localhost dbname=''", "host=localhost port=5432 user=me dbname=me"),
    (
        "host=localhost dbname= user=joe",
        "host=localhost port=5432 user=me dbname='user=joe'",
    ),
    (
        "host='' user=joe",
        "host=/var/run/postgresql port=5432 user=joe dbname=joe",
    ),
    (
        "host=localhost host=127.0.0.1",
        "host=127.0.0.1 port=5432 user=me dbname=me",
    ),
    (
        "host=localhost,127.0.0.1 port=25001,25002",
        "host=localhost,127.0.0.1 port=25001,25002 user=me dbname=me",
    ),
    (
        "host=localhost,127.0.0.1 port=25001",
        "host=localhost,127.0.0.1 port=25001 user=me dbname=me",
    ),
    (
        "host=localhost,127.0.0.1 port=25001,",
        "host=localhost,127.0.0.1 port=25001,5432 user=me dbname=me",
    ),
    (
        "host=localhost,127.0.0.1 port=,25001",
        "host=localhost,127.0.0.1 port=5432,25001 user=me dbname=me",
    ),
    (
        "host=,localhost",
        "host=/var/run/postgresql,localhost port=5432 user=me dbname=me",
    ),
    (
        "host=localhost,",
        "host=localhost,/var/run/postgresql port=5432 user=me dbname=me",
    ),
    (
        "host=/tmp/none port=25003",
        "host=/tmp/none port=25003 user=me dbname=me",
    ),
    (
        "host=/tmp/none,localhost port=25003,25004",
        "host=/tmp/none,localhost port=25003,25004 user=me dbname=me",
    ),
    (
        "host=@abstract port=25003",
        "host=@abstract port=25003 user=me dbname=me",
    ),
    (
        "hostaddr=127.0.0.1 port=25003",
        "host=127.0.0.1 port=25003 user=me dbname=me",
    ),
    (
        "host=db.example hostaddr=127.0.0.1 port=25003",
        "host=db.example port=25003 user=me dbname=me",
    ),
    (
        "host=a,b hostaddr=,127.0.0.2 port=25003",
        "host=a,b port=25003 user=me dbname=me",
    ),
    (
        "port=+25003 host=localhost",
        "host=localhost port=25003 user=me dbname=me",
    ),
    (
        "port=' 25003 ' host=localhost",
        "host=localhost port=25003 user=me dbname=me",
    ),
    ("host", "host=/var/run/postgresql port=5432 user=me dbname=host"),
    (
        "host localhost",
        "host=/var/run/postgresql port=5432 user=me dbname='host localhost'",
    ),
    (
        "sslmode=require host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "requiressl=1 host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "requiressl=0 host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (r"password=x\", "host=/var/run/postgresql port=5432 user=me dbname=me"),
    (
        "target_session_attrs=prefer-standby host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "connect_timeout=-5 host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "keepalives_idle=-1 host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "gssencmode=disable host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "ssl_min_protocol_version=tlsv1.3 host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    ("postgresql://", "host=/var/run/postgresql port=5432 user=me dbname=me"),
    ("postgres://", "host=/var/run/postgresql port=5432 user=me dbname=me"),
    ("postgresql:///", "host=/var/run/postgresql port=5432 user=me dbname=me"),
    (
        "postgresql:///mydb",
        "host=/var/run/postgresql port=5432 user=me dbname=mydb",
    ),
    ("postgresql://localhost", "host=localhost port=5432 user=me dbname=me"),
    (
        "postgresql://localhost:25000",
        "host=localhost port=25000 user=me dbname=me",
    ),
    (
        "postgresql://localhost:25000/",
        "host=localhost port=25000 user=me dbname=me",
    ),
    (
        "postgresql://localhost:/mydb",
        "host=localhost port=5432 user=me dbname=mydb",
    ),
    (
        "postgresql://localhost/mydb",
        "host=localhost port=5432 user=me dbname=mydb",
    ),
    (
        "postgresql://joe@localhost",
        "host=localhost port=5432 user=joe dbname=joe",
    ),
    (
        "postgresql://joe:secret@localhost",
        "host=localhost port=5432 user=joe dbname=joe",
    ),
    (
        "postgresql://joe:@localhost/x",
        "host=localhost port=5432 user=joe dbname=x",
    ),
    (
        "postgresql://:secret@localhost/x",
        "host=localhost port=5432 user=me dbname=x",
    ),
    ("postgresql://@localhost/x", "host=localhost port=5432 user=me dbname=x"),
    (
        "postgresql://joe@",
        "host=/var/run/postgresql port=5432 user=joe dbname=joe",
    ),
    (
        "postgresql://joe@/x",
        "host=/var/run/postgresql port=5432 user=joe dbname=x",
    ),
    (
        "postgresql://joe@:25000/x",
        "host=/var/run/postgresql port=25000 user=joe dbname=x",
    ),
    (
        "postgresql://:25000",
        "host=/var/run/postgresql port=25000 user=me dbname=me",
    ),
    (
        "postgresql://joe:pa:ss@localhost",
        "host=localhost port=5432 user=joe dbname=joe",
    ),
    (
        "postgresql://joe:pa%40ss@localhost",
        "host=localhost port=5432 user=joe dbname=joe",
    ),
    (
        "postgresql://joe:pa?ss@localhost/x",
        "host=localhost port=5432 user=joe dbname=x",
    ),
    (
        "postgresql://joe%40corp@localhost/x",
        "host=localhost port=5432 user=joe@corp dbname=x",
    ),
    (
        "postgresql://localhost/my%20db",
        "host=localhost port=5432 user=me dbname='my db'",
    ),
    (
        "postgresql://localhost/a/b",
        "host=localhost port=5432 user=me dbname=a/b",
    ),
    (
        "postgresql://localhost/?dbname=x",
        "host=localhost port=5432 user=me dbname=x",
    ),
    (
        "postgresql://localhost?dbname=x",
        "host=localhost port=5432 user=me dbname=x",
    ),
    (
        "postgresql://localhost/x?user=joe&port=25000",
        "host=localhost port=25000 user=joe dbname=x",
    ),
    ("postgresql://localhost/x?", "host=localhost port=5432 user=me dbname=x"),
    (
        "postgresql://localhost/x?user=joe&",
        "host=localhost port=5432 user=joe dbname=x",
    ),
    (
        "postgresql://localhost/x?user=",
        "host=localhost port=5432 user=me dbname=x",
    ),
    (
        "postgresql://localhost/x?ssl=true",
        "host=localhost port=5432 user=me dbname=x",
    ),
    (
        "postgresql://localhost/x?%75ser=joe",
        "host=localhost port=5432 user=joe dbname=x",
    ),
    (
        "postgresql://localhost,127.0.0.1/x",
        "host=localhost,127.0.0.1 port=5432 user=me dbname=x",
    ),
    (
        "postgresql://localhost:25001,127.0.0.1:25002/x",
        "host=localhost,127.0.0.1 port=25001,25002 user=me dbname=x",
    ),
    (
        "postgresql://localhost:25001,127.0.0.1/x",
        "host=localhost,127.0.0.1 port=25001,5432 user=me dbname=x",
    ),
    (
        "postgresql://localhost,127.0.0.1:25002/x",
        "host=localhost,127.0.0.1 port=5432,25002 user=me dbname=x",
    ),
    (
        "postgresql://,localhost/x",
        "host=/var/run/postgresql,localhost port=5432 user=me dbname=x",
    ),
    ("postgresql://[::1]/x", "host=::1 port=5432 user=me dbname=x"),
    ("postgresql://[::1]:25000/x", "host=::1 port=25000 user=me dbname=x"),
    (
        "postgresql://[::1],localhost:25000/x",
        "host=::1,localhost port=5432,25000 user=me dbname=x",
    ),
    (
        "postgresql://%2Ftmp%2Fnone/x",
        "host=/tmp/none port=5432 user=me dbname=x",
    ),
    (
        "postgresql://%2Ftmp%2Fnone:25000/x",
        "host=/tmp/none port=25000 user=me dbname=x",
    ),
    (
        "postgresql:///x?host=/tmp/none",
        "host=/tmp/none port=5432 user=me dbname=x",
    ),
    (
        "postgresql:///x?host=/tmp/none&port=25000",
        "host=/tmp/none port=25000 user=me dbname=x",
    ),
    ("postgresql://a%2Cb:25000/x", "host=a,b port=25000 user=me dbname=x"),
    (
        "postgresql://localhost/x#frag",
        "host=localhost port=5432 user=me dbname='x#frag'",
    ),
    (
        "postgresql://localhost/x?host=127.0.0.1",
        "host=127.0.0.1 port=5432 user=me dbname=x",
    ),
    (
        "host=localhost user=joe dbname=postgresql://elsewhere",
        "host=localhost port=5432 user=joe dbname=postgresql://elsewhere",
    ),
    (
        "host=localhost dbname='host=elsewhere'",
        "host=localhost port=5432 user=me dbname='host=elsewhere'",
    ),
    (
        "host=localhost options='-c geqo=off'",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "host=localhost application_name=x",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "client_encoding=utf8 host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "krbsrvname=x gsslib=gssapi host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "fallback_application_name=f host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    ("sslsni=x host=localhost", "host=localhost port=5432 user=me dbname=me"),
    (
        "sslcompression=1 host=localhost",
        "host=localhost port=5432 user=me dbname=me",
    ),
    (
        "user=ünïcode host=localhost",
        "host=localhost port=5432 user='ünïcode' dbname='ünïcode'",
    ),
];

/// All but the last block were refused by libpq 5.15 or psql 15 as well, in other words.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("host=a,b port=1,2,3", "could not match 3 port numbers to 2 hosts"),
    ("host=a port=1,2", "could not match 2 port numbers to 1 hosts"),
    (
        "host=a,b hostaddr=127.0.0.1",
        "could not match 2 host names to 1 hostaddr values",
    ),
    (
        "host=a hostaddr=127.0.0.1,127.0.0.2",
        "could not match 1 host names to 2 hostaddr values",
    ),
    (
        "hostaddr=localhost",
        "invalid hostaddr \"localhost\" (from the connection string)",
    ),
    ("port=0", "invalid port \"0\" (from the connection string)"),
    ("port=65536", "invalid port \"65536\" (from the connection string)"),
    ("port=-1", "invalid port \"-1\" (from the connection string)"),
    ("port=5432x", "invalid port \"5432x\" (from the connection string)"),
    (
        "=x",
        "unknown connection setting at character 1 in the connection string",
    ),
    (
        "hsot=a",
        "unknown connection setting \"hsot\" at character 1 in the connection string",
    ),
    ("host=a sslmode=", "invalid sslmode \"\" (from the connection string)"),
    (
        "sslmode=Require",
        "invalid sslmode \"Require\" (from the connection string)",
    ),
    (
        "password=two words host=a",
        "missing \"=\" in the connection string after the word at character 14",
    ),
    (
        "password='open",
        "the quote at character 10 of the connection string is never closed",
    ),
    (
        "password='it\\'s open",
        "the quote at character 10 of the connection string is never closed",
    ),
    (
        "channel_binding=yes",
        "invalid channel_binding \"yes\" (from the connection string)",
    ),
    (
        "target_session_attrs=master",
        "invalid target_session_attrs \"master\" (from the connection string)",
    ),
    (
        "gssencmode=never",
        "invalid gssencmode \"never\" (from the connection string)",
    ),
    (
        "ssl_min_protocol_version=TLSv1.4",
        "invalid ssl_min_protocol_version \"TLSv1.4\" (from the connection string)",
    ),
    (
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "ssl_min_protocol_version is above ssl_max_protocol_version",
    ),
    (
        "connect_timeout=10s",
        "invalid connect_timeout \"10s\" (from the connection string)",
    ),
    (
        "connect_timeout=''",
        "invalid connect_timeout \"\" (from the connection string)",
    ),
    ("keepalives=x", "invalid keepalives \"x\" (from the connection string)"),
    (
        "keepalives_idle=1x",
        "invalid keepalives_idle \"1x\" (from the connection string)",
    ),
    (
        "tcp_user_timeout=''",
        "invalid tcp_user_timeout \"\" (from the connection string)",
    ),
    ("service=", "no service file defines the service \"\""),
    (
        "postgresql://a/my%2",
        "the connection URI is malformed: \"%\" must be followed by two hexadecimal digits (near character 16)",
    ),
    (
        "postgresql://a/my%zz",
        "the connection URI is malformed: \"%\" must be followed by two hexadecimal digits (near character 16)",
    ),
    (
        "postgresql://a/my%00",
        "the connection URI is malformed: %00 is not allowed (near character 16)",
    ),
    (
        "postgresql://a/x?&user=joe",
        "the connection URI is malformed: a query parameter has no \"=\" (near character 18)",
    ),
    (
        "postgresql://a/x?user",
        "the connection URI is malformed: a query parameter has no \"=\" (near character 18)",
    ),
    (
        "postgresql://a/x?user=a=b",
        "the connection URI is malformed: a query parameter has more than one \"=\" (near character 18)",
    ),
    (
        "postgresql://a/x?usr=joe",
        "unknown connection setting \"usr\" at character 18 in the connection string",
    ),
    (
        "postgresql://a/x?ssl=false",
        "unknown connection setting \"ssl\" at character 18 in the connection string",
    ),
    (
        "postgresql://[::1",
        "the connection URI is malformed: \"[\" of an IPv6 address is never closed (near character 14)",
    ),
    (
        "postgresql://[]",
        "the connection URI is malformed: the IPv6 address between \"[\" and \"]\" is empty (near character 14)",
    ),
    (
        "postgresql://[::1]z",
        "the connection URI is malformed: after \"]\" only \":\", \"/\", \"?\" or \",\" may follow (near character 19)",
    ),
    (
        "postgresql://::1/x",
        "the connection URI is malformed: the port is not a number (near character 15)",
    ),
    (
        "postgresql://a:abc/x",
        "the connection URI is malformed: the port is not a number (near character 16)",
    ),
    (
        "postgresql://a:99999/x",
        "invalid port \"99999\" (from the connection string)",
    ),
    (
        "PostgreSQL://a/x?user=joe",
        "the connection URI does not begin with postgresql:// or postgres://",
    ),
    // libpq would take these: an unencoded password, or what this program does not have.
    (
        "mysql://joe:pw@a/x",
        "the connection URI does not begin with postgresql:// or postgres://",
    ),
    (
        "postgresql:/joe:pw@a/x",
        "the connection URI does not begin with postgresql:// or postgres://",
    ),
    (
        "joe:pw@a/x",
        "the connection URI does not begin with postgresql:// or postgres://",
    ),
    (
        "postgresql://joe:p@w@a/x",
        "the connection URI is malformed: \"@\" where none may stand (near character 20)",
    ),
    (
        "postgresql://joe:1/2@a/x",
        "the connection URI is malformed: \"@\" where none may stand (near character 14)",
    ),
    (
        "host=p@a",
        "the value of host (from the connection string) contains an \"@\", which no host name does",
    ),
    (
        "replication=true",
        "replication (from the connection string) is not supported: the kind of connection is chosen by the command",
    ),
    (
        "sslpassword=pw",
        "sslpassword (from the connection string) is not supported: store the client key without a passphrase, readable by its owner only",
    ),
    (
        "gssencmode=require",
        "gssencmode (from the connection string) is not supported: encryption by GSSAPI is not there; use TLS (sslmode=require)",
    ),
    (
        "requirepeer=postgres",
        "requirepeer (from the connection string) is not supported: the owner of the server's socket is not checked",
    ),
    (
        "sslkey=pkcs11:key",
        "sslkey (from the connection string) is not supported: keys in an OpenSSL engine cannot be used; name a file",
    ),
    (
        "ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1.1",
        "ssl_max_protocol_version (from the connection string) is not supported: TLS 1.2 is the oldest there is",
    ),
    (
        "dbname=x\0y",
        "the value of dbname (from the connection string) contains a zero byte",
    ),
    (
        "postgresql://a/%FF",
        "the value of dbname (from the connection string) is not UTF-8",
    ),
    // Of newer libpqs.
    (
        "sslrootcert=system sslmode=require",
        "sslmode=require is too weak for sslrootcert=system; use verify-full",
    ),
    (
        "sslnegotiation=direct",
        "sslmode=prefer is too weak for sslnegotiation=direct; use require, verify-ca or verify-full",
    ),
    (
        "require_auth=md5,!password",
        "invalid require_auth \"md5,!password\" (from the connection string)",
    ),
    (
        "require_auth=md5,md5",
        "invalid require_auth \"md5,md5\" (from the connection string)",
    ),
    (
        "min_protocol_version=3.2",
        "min_protocol_version (from the connection string) is not supported: protocol 3.0 is what every supported server speaks",
    ),
];

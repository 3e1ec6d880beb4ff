BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0004');
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	who VARCHAR(100) NOT NULL, 
	verb VARCHAR(40) NOT NULL, 
	subject_kind VARCHAR(20) NOT NULL, 
	subject_id VARCHAR(100) NOT NULL, 
	"before" JSON, 
	"after" JSON, 
	reason TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,'2026-11-26 17:54:13.818667','smith','cancelled','job','1',NULL,NULL,'by mistake');
INSERT INTO "audit" VALUES(2,'2026-11-26 17:54:13.821451','agent','adopted','mapping','29966d02-88c0-4ff3-a85f-1fddd9b6f634',NULL,'{"service_id": "29966d02-88c0-4ff3-a85f-1fddd9b6f634", "cluster": "pve", "vmid": 100002, "node": "pve1", "name": "reported-100002", "state": "active", "note": null}',NULL);
CREATE TABLE critical_jobs (
	name VARCHAR(40) NOT NULL, 
	interval_s DOUBLE NOT NULL, 
	due_at DATETIME, 
	last_started_at DATETIME, 
	last_finished_at DATETIME, 
	last_ok_at DATETIME, 
	last_error TEXT, 
	failures INTEGER NOT NULL, 
	runs INTEGER NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "critical_jobs" VALUES('Heartbeat',10.0,'2026-11-26 17:54:21.213000','2026-11-26 17:54:13.209766','2026-11-26 17:54:13.213775',NULL,'FulcrumUnavailable: PUT /agents/me/status: HTTP 503',1,1);
INSERT INTO "critical_jobs" VALUES('GetPendingJobs',60.0,'2026-11-26 17:55:01.220000','2026-11-26 17:54:13.219253','2026-11-26 17:54:13.220441','2026-11-26 17:54:13.220441',NULL,0,1);
INSERT INTO "critical_jobs" VALUES('PruneCompletedJobs',60.0,'2026-11-26 17:55:01.222000','2026-11-26 17:54:13.221388','2026-11-26 17:54:13.222413','2026-11-26 17:54:13.222413',NULL,0,1);
INSERT INTO "critical_jobs" VALUES('DestroyDoomed',60.0,'2026-11-26 17:55:01.223000','2026-11-26 17:54:13.222992','2026-11-26 17:54:13.223869','2026-11-26 17:54:13.223869',NULL,0,1);
INSERT INTO "critical_jobs" VALUES('ReportMetric',60.0,'2026-11-26 17:55:01.225000','2026-11-26 17:54:13.224374','2026-11-26 17:54:13.225323','2026-11-26 17:54:13.225323',NULL,0,1);
INSERT INTO "critical_jobs" VALUES('Reconcile',60.0,'2026-11-26 17:55:01.227000','2026-11-26 17:54:13.225845','2026-11-26 17:54:13.227377','2026-11-26 17:54:13.227377',NULL,0,1);
CREATE TABLE jobs (
	id INTEGER NOT NULL, 
	fulcrum_id VARCHAR(36) NOT NULL, 
	service_id VARCHAR(36), 
	group_id VARCHAR(36), 
	action VARCHAR(100) NOT NULL, 
	params JSON, 
	service JSON, 
	defect TEXT, 
	priority INTEGER NOT NULL, 
	status VARCHAR(20) NOT NULL, 
	attempt INTEGER NOT NULL, 
	crashes INTEGER NOT NULL, 
	cancel_requested BOOLEAN NOT NULL, 
	available_at DATETIME, 
	core_created_at DATETIME NOT NULL, 
	deadline_at DATETIME NOT NULL, 
	received_at DATETIME NOT NULL, 
	owner VARCHAR(64), 
	lease_until DATETIME, 
	epoch INTEGER NOT NULL, 
	claim_sent_at DATETIME, 
	claimed_at DATETIME, 
	started_at DATETIME, 
	finished_at DATETIME, 
	reported_at DATETIME, 
	report_state VARCHAR(20) NOT NULL, 
	report_attempts INTEGER NOT NULL, 
	report_after DATETIME, 
	report_note TEXT, 
	error_code VARCHAR(40), 
	error_message TEXT, 
	result JSON, 
	run_ident VARCHAR(64), tenant_id VARCHAR(36), 
	PRIMARY KEY (id), 
	UNIQUE (fulcrum_id)
);
INSERT INTO "jobs" VALUES(1,'bbe5ec55-f665-4f2d-8dd1-0cf36901af6f','921cccb6-541c-4ffc-ac4e-9538d3a894a3',NULL,'create',NULL,'{"name": "reaped", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'pending',2,1,0,'2026-11-26 17:54:18.291000','2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.230681',NULL,NULL,3,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,'NODE_DOWN: pve1',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(2,'60974a25-5a19-4f05-a406-96ea04c6c7e6','29966d02-88c0-4ff3-a85f-1fddd9b6f634',NULL,'create',NULL,'{"name": "reported", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.298714','node-of-then',NULL,1,'2026-11-26 17:54:13.301680','2026-11-26 17:54:13.303204','2026-11-26 17:54:13.304378','2026-11-26 17:54:13.320368','2026-11-26 17:54:13.322803','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100002, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:02"}','create-reported','6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO "jobs" VALUES(3,'f82345b4-e2bb-4bf9-8605-d1b0c52b7311','bdd67332-6c9c-4eb0-af23-7eb96708d2a7',NULL,'create',NULL,'{"name": "container", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.323761','node-of-then',NULL,1,'2026-11-26 17:54:13.330666','2026-11-26 17:54:13.331458','2026-11-26 17:54:13.332034','2026-11-26 17:54:13.335045','2026-11-26 17:54:13.342043','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100003, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:03"}','create-container','6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO "jobs" VALUES(4,'c97de1a6-6a83-4314-b08c-3bc53e9836b3','a85da5f9-945e-40fc-81c7-0f38c4f99d61',NULL,'create',NULL,'{"name": "orphaned", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.342788','node-of-then',NULL,1,'2026-11-26 17:54:13.345324','2026-11-26 17:54:13.346063','2026-11-26 17:54:13.350954','2026-11-26 17:54:13.353886','2026-11-26 17:54:13.359247','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100004, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:04"}','create-orphaned','6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO "jobs" VALUES(5,'d0ac5f62-d906-4abb-874e-527c908e6059','5f492ce8-58de-48fb-8e79-35d9a69b430a',NULL,'create',NULL,'{"name": "ended-by-core", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'failed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.363877','node-of-then',NULL,1,NULL,'2026-11-26 17:54:13.369162',NULL,'2026-11-26 17:54:13.369928','2026-11-26 17:54:13.375528','orphaned',0,NULL,'HTTP 400','CAPACITY','CAPACITY: no node has room',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(6,'c0748991-93bd-49a4-8bc2-1376ddc2bae0','c34f0b26-b68a-4a36-a443-0f56eb57dab9',NULL,'create',NULL,'{"name": "unknown-to-core", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'failed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.376018','node-of-then',NULL,1,NULL,'2026-11-26 17:54:13.381715',NULL,'2026-11-26 17:54:13.383050','2026-11-26 17:54:13.384350','abandoned',0,NULL,'HTTP 400','CAPACITY','CAPACITY: no node has room',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(7,'368b98f5-23d8-4e1c-907b-c207633fa461','5cba4728-cb09-4e3f-9a49-047db765efef','9a3f2c4e-1111-4222-8333-444455556666','create',NULL,'{"name": "due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.393003','node-of-then',NULL,1,'2026-11-26 17:54:13.398255','2026-11-26 17:54:13.403536','2026-11-26 17:54:13.404258','2026-11-26 17:54:13.412501',NULL,'due',0,NULL,NULL,NULL,NULL,'{"vmid": 100007, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:07"}','create-due',NULL);
INSERT INTO "jobs" VALUES(8,'8fe46f75-00a4-4a6b-b443-4c025bf76884','aff74a6b-9f5e-4647-ace6-684abdfe00d7',NULL,'create',NULL,'{"name": "failed-due", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'failed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.413608','node-of-then',NULL,1,NULL,'2026-11-26 17:54:13.421807',NULL,'2026-11-26 17:54:13.424542',NULL,'due',0,NULL,NULL,'CAPACITY','CAPACITY: no node has room',NULL,NULL,'9a3f2c4e-1111-4222-8333-444455556666');
INSERT INTO "jobs" VALUES(9,'ac1b1fac-5990-418b-8229-5b1d6b46b05d','4be0f366-bf27-40ae-92ee-be6cb6bb6ef0',NULL,'create',NULL,'{"name": "tried-once", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'failed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.425787','node-of-then',NULL,1,NULL,'2026-11-26 17:54:13.432376',NULL,'2026-11-26 17:54:13.433069',NULL,'due',1,'2026-11-26 17:54:13.443000','POST /jobs: HTTP 503','CAPACITY','CAPACITY: no node has room',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(10,'83b650d8-9b13-4bb7-8f14-55ae1d1ab1a4','19338e78-0d68-488e-b435-558c0e202640',NULL,'create',NULL,'{"name": "postponed", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'failed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.443576','node-of-then',NULL,1,NULL,'2026-11-26 17:54:13.447616',NULL,'2026-11-26 17:54:13.448382',NULL,'due',1,'2036-11-23 17:54:13.449000','POST /jobs: HTTP 503','CAPACITY','CAPACITY: no node has room',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(11,'0c5555a2-6ffc-4b9e-8964-cc6f5fbbf766','e60567fa-5d76-423a-a823-954fd11bde9d',NULL,'create',NULL,'{"name": "deleted", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.458652','node-of-then',NULL,1,'2026-11-26 17:54:13.461464','2026-11-26 17:54:13.462218','2026-11-26 17:54:13.467201','2026-11-26 17:54:13.473915','2026-11-26 17:54:13.475488','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100011, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:0B"}','create-deleted',NULL);
INSERT INTO "jobs" VALUES(12,'5015cb24-54c1-4021-a2fa-c41b5dec79a1','e60567fa-5d76-423a-a823-954fd11bde9d',NULL,'delete',NULL,'{"name": "deleted", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.476047','node-of-then',NULL,1,'2026-11-26 17:54:13.482872','2026-11-26 17:54:13.483690','2026-11-26 17:54:13.484435','2026-11-26 17:54:13.487492','2026-11-26 17:54:13.488656','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100011, "status": "absent"}','delete-deleted',NULL);
INSERT INTO "jobs" VALUES(13,'9a38afde-e2b9-4d60-ace2-b3a00ba9a34f','4e9ebaed-d978-4ddc-99b6-23558ec1f528',NULL,'create',NULL,'{"name": "purged", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.489169','node-of-then',NULL,1,'2026-11-26 17:54:13.494039','2026-11-26 17:54:13.499349','2026-11-26 17:54:13.500002','2026-11-26 17:54:13.503105','2026-11-26 17:54:13.504310','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100013, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:0D"}','create-purged',NULL);
INSERT INTO "jobs" VALUES(14,'f2df4cfc-da22-4f60-821b-f44e6da80b7a','4e9ebaed-d978-4ddc-99b6-23558ec1f528',NULL,'delete',NULL,'{"name": "purged", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.504786','node-of-then',NULL,1,'2026-11-26 17:54:13.507437','2026-11-26 17:54:13.508136','2026-11-26 17:54:13.508870','2026-11-26 17:54:13.516152','2026-11-26 17:54:13.517245','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100013, "status": "stopped", "node": "pve1", "delete_at": 1000000000}','delete-purged',NULL);
INSERT INTO "jobs" VALUES(15,'386af52e-60bf-47b7-a411-b43eab2fb3c7','4e9ebaed-d978-4ddc-99b6-23558ec1f528',NULL,'delete',NULL,'{"name": "purged-local", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-11-26 17:54:13.517672','2026-11-26 17:54:13.517672','2026-11-26 17:54:13.517725','node-of-then',NULL,1,'2026-11-26 17:54:13.524212','2026-11-26 17:54:13.524902','2026-11-26 17:54:13.525583','2026-11-26 17:54:13.527875',NULL,'local',0,NULL,NULL,NULL,NULL,'{"vmid": 100013, "status": "absent"}','delete-purged-local',NULL);
INSERT INTO "jobs" VALUES(16,'a86bcd90-d57c-42df-829d-a952c134b5a1','fceb6e03-15c2-4c08-95d6-3e15d600774e',NULL,'create',NULL,'{"name": "purge-now", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.528858','node-of-then',NULL,1,'2026-11-26 17:54:13.535628','2026-11-26 17:54:13.536781','2026-11-26 17:54:13.537754','2026-11-26 17:54:13.541963','2026-11-26 17:54:13.547373','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100016, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:10"}','create-purge-now',NULL);
INSERT INTO "jobs" VALUES(17,'711cb8a5-3e6c-4a94-8159-82092801cdfc','fceb6e03-15c2-4c08-95d6-3e15d600774e',NULL,'delete',NULL,'{"name": "purge-now", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.547900','node-of-then',NULL,1,'2026-11-26 17:54:13.550444','2026-11-26 17:54:13.551232','2026-11-26 17:54:13.551904','2026-11-26 17:54:13.557610','2026-11-26 17:54:13.563578','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100016, "status": "stopped", "node": "pve1", "delete_at": 1000000000}','delete-purge-now',NULL);
INSERT INTO "jobs" VALUES(18,'8b223c3c-1be6-4b1c-9437-45ac6568e627','fceb6e03-15c2-4c08-95d6-3e15d600774e',NULL,'delete',NULL,NULL,NULL,0,'pending',0,0,0,NULL,'2026-11-26 17:54:13.564314','2026-11-26 17:54:13.564314','2026-11-26 17:54:13.564377',NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,'local',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(19,'4ed1f7d4-f540-43b3-8bcb-4503759cc640','7e4d427e-8633-4f13-aa13-0a125504c20d',NULL,'create',NULL,'{"name": "later", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.565574','node-of-then',NULL,1,'2026-11-26 17:54:13.568401','2026-11-26 17:54:13.569199','2026-11-26 17:54:13.569892','2026-11-26 17:54:13.581277','2026-11-26 17:54:13.590840','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100019, "node": "pve1", "status": "stopped", "mac_address": "BC:24:11:00:00:13"}','create-later',NULL);
INSERT INTO "jobs" VALUES(20,'293a1572-4520-48dd-8d31-2d367f95aa7c','7e4d427e-8633-4f13-aa13-0a125504c20d',NULL,'delete',NULL,'{"name": "later", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'completed',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.591429','node-of-then',NULL,1,'2026-11-26 17:54:13.593700','2026-11-26 17:54:13.606664','2026-11-26 17:54:13.607455','2026-11-26 17:54:13.609899','2026-11-26 17:54:13.611587','reported',0,NULL,NULL,NULL,NULL,'{"vmid": 100019, "status": "stopped", "node": "pve1", "delete_at": 4000000000}','delete-later',NULL);
INSERT INTO "jobs" VALUES(21,'5414c5c9-229a-4afb-ba40-32532536bdd5','8e10d0b4-a93b-4e2b-9b8f-f30b16bd213a',NULL,'create',NULL,'{"name": "cloning", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'processing',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.618684','node-of-then','2026-11-26 17:53:13.621000',1,'2026-11-26 17:54:13.622182','2026-11-26 17:54:13.625760','2026-11-26 17:54:13.630396',NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,'create-cloning','6f9619ff-8b86-4d01-8b42-00cf4fc964ff');
INSERT INTO "jobs" VALUES(22,'8d1c26e9-5ebb-4c27-a52b-dc04d75a880c','b098f113-eecf-4905-b808-98047bdeb3e6',NULL,'create',NULL,'{"name": "cancelled", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'processing',1,0,1,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.633502','node-of-then','2026-11-26 17:53:13.695000',1,'2026-11-26 17:54:13.697249','2026-11-26 17:54:13.706458','2026-11-26 17:54:13.707663',NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,'create-cancelled',NULL);
INSERT INTO "jobs" VALUES(23,'01a451fa-063f-4799-bc87-21fe390c039d','1202879a-e384-402e-8236-014f3caf56ca',NULL,'create',NULL,'{"name": "claim-not-sent", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'processing',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.722207','node-of-then','2026-11-26 17:53:13.759000',1,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(24,'06de814d-706e-42b9-8728-4535e1f3dd62','84205fb5-87b1-40e4-a2f3-f740c3ffef2e',NULL,'create',NULL,'{"name": "claim-not-answered", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'processing',1,0,0,NULL,'2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.764649','node-of-then','2026-11-26 17:53:13.772000',1,'2026-11-26 17:54:13.779484',NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(25,'45ae0b2f-8693-47c3-9628-049a0a37c1b3','eceb7981-cfbf-4a68-8417-5a2cc1918a0a',NULL,'create',NULL,'{"name": "requeued", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'pending',1,0,0,'2026-11-26 17:54:18.799000','2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.789531',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,'PVE_UNREACHABLE: no connection',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(26,'8679ca07-a96b-47c0-ac14-3a55cf240a09','97e7b48f-7428-44b8-a363-5f2404d35baa',NULL,'create',NULL,'{"name": "requeued-for-long", "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}',NULL,9,'pending',1,0,0,'2036-11-23 17:54:13.807000','2026-01-01 00:00:00.000000','2026-01-01 00:05:00.000000','2026-11-26 17:54:13.799579',NULL,NULL,1,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,'PVE_UNREACHABLE: no connection',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(27,'2e83a136-36b8-4355-96b0-9e219dbd9884','29966d02-88c0-4ff3-a85f-1fddd9b6f634',NULL,'start','{"text": "\u00fcml\u00e4ut \ud83d\ude42", "number": 1.5}',NULL,NULL,1,'pending',0,0,0,NULL,'2026-01-01 01:40:00.000000','2026-01-01 01:45:00.000000','2026-11-26 17:54:13.810292',NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(28,'da49310f-de58-47cc-9232-48e5a7a6c341','de3e180f-d6ef-47af-b5b9-725041060bd4',NULL,'create',NULL,NULL,'action: missing',1,'pending',0,0,0,NULL,'2026-01-01 01:41:00.000000','2026-01-01 01:46:00.000000','2026-11-26 17:54:13.812304',NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(29,'364827f7-3c75-495e-8907-855e0058be1b','ce1333ec-67f6-4701-86e8-941cdcb3ff67',NULL,'create',NULL,NULL,NULL,1,'pending',0,0,0,NULL,'2026-01-01 01:42:00.000000','2026-01-01 01:47:00.000000','2026-11-26 17:54:13.814798',NULL,NULL,0,'2026-11-26 17:54:13.814798','2026-11-26 17:54:13.814798',NULL,NULL,NULL,'none',0,NULL,NULL,NULL,NULL,NULL,NULL,'9a3f2c4e-1111-4222-8333-444455556666');
CREATE TABLE mappings (
	id INTEGER NOT NULL, 
	service_id VARCHAR(36) NOT NULL, 
	cluster VARCHAR(100) NOT NULL, 
	vmid INTEGER NOT NULL, 
	node VARCHAR(100), 
	name VARCHAR(100) NOT NULL, 
	marker VARCHAR(100) NOT NULL, 
	mac_address VARCHAR(20), 
	state VARCHAR(20) NOT NULL, 
	note TEXT, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME NOT NULL, 
	deleted_at DATETIME, kind VARCHAR(10) DEFAULT 'qemu' NOT NULL, delete_at DATETIME, 
	PRIMARY KEY (id)
);
INSERT INTO "mappings" VALUES(1,'29966d02-88c0-4ff3-a85f-1fddd9b6f634','pve',100002,'pve1','reported-100002','smith-uid=29966d02-88c0-4ff3-a85f-1fddd9b6f634','BC:24:11:00:00:02','active',NULL,'2026-11-26 17:54:13.312278','2026-11-26 17:54:13.319189',NULL,'qemu',NULL);
INSERT INTO "mappings" VALUES(2,'bdd67332-6c9c-4eb0-af23-7eb96708d2a7','pve',100003,'pve1','container-100003','smith-uid=bdd67332-6c9c-4eb0-af23-7eb96708d2a7','BC:24:11:00:00:03','active',NULL,'2026-11-26 17:54:13.333284','2026-11-26 17:54:13.334447',NULL,'lxc',NULL);
INSERT INTO "mappings" VALUES(3,'a85da5f9-945e-40fc-81c7-0f38c4f99d61','pve',100004,'pve1','orphaned-100004','smith-uid=a85da5f9-945e-40fc-81c7-0f38c4f99d61','BC:24:11:00:00:04','orphaned','vanished','2026-11-26 17:54:13.352244','2026-11-26 17:54:13.362813',NULL,'qemu',NULL);
INSERT INTO "mappings" VALUES(4,'5cba4728-cb09-4e3f-9a49-047db765efef','pve',100007,'pve1','due-100007','smith-uid=5cba4728-cb09-4e3f-9a49-047db765efef','BC:24:11:00:00:07','active',NULL,'2026-11-26 17:54:13.405801','2026-11-26 17:54:13.411695',NULL,'qemu',NULL);
INSERT INTO "mappings" VALUES(5,'e60567fa-5d76-423a-a823-954fd11bde9d','pve',100011,'pve1','deleted-100011','smith-uid=e60567fa-5d76-423a-a823-954fd11bde9d','BC:24:11:00:00:0B','deleted',NULL,'2026-11-26 17:54:13.468552','2026-11-26 17:54:13.486448','2026-11-26 17:54:13.486448','qemu',NULL);
INSERT INTO "mappings" VALUES(6,'4e9ebaed-d978-4ddc-99b6-23558ec1f528','pve',100013,'pve1','purged-100013','smith-uid=4e9ebaed-d978-4ddc-99b6-23558ec1f528','BC:24:11:00:00:0D','deleted',NULL,'2026-11-26 17:54:13.501306','2026-11-26 17:54:13.527415','2026-11-26 17:54:13.527415','qemu','2001-09-09 01:46:40.000000');
INSERT INTO "mappings" VALUES(7,'fceb6e03-15c2-4c08-95d6-3e15d600774e','pve',100016,'pve1','purge-now-100016','smith-uid=fceb6e03-15c2-4c08-95d6-3e15d600774e','BC:24:11:00:00:10','doomed',NULL,'2026-11-26 17:54:13.540346','2026-11-26 17:54:13.556744',NULL,'qemu','2001-09-09 01:46:40.000000');
INSERT INTO "mappings" VALUES(8,'7e4d427e-8633-4f13-aa13-0a125504c20d','pve',100019,'pve1','later-100019','smith-uid=7e4d427e-8633-4f13-aa13-0a125504c20d','BC:24:11:00:00:13','doomed',NULL,'2026-11-26 17:54:13.579567','2026-11-26 17:54:13.609332',NULL,'qemu','2096-10-02 07:06:40.000000');
INSERT INTO "mappings" VALUES(9,'8e10d0b4-a93b-4e2b-9b8f-f30b16bd213a','pve',100021,NULL,'cloning-100021','smith-uid=8e10d0b4-a93b-4e2b-9b8f-f30b16bd213a',NULL,'reserved',NULL,'2026-11-26 17:54:13.632652','2026-11-26 17:54:13.632652',NULL,'qemu',NULL);
INSERT INTO "mappings" VALUES(10,'b098f113-eecf-4905-b808-98047bdeb3e6','pve',100022,NULL,'cancelled-100022','smith-uid=b098f113-eecf-4905-b808-98047bdeb3e6',NULL,'reserved',NULL,'2026-11-26 17:54:13.709538','2026-11-26 17:54:13.709538',NULL,'qemu',NULL);
CREATE TABLE nodes (
	id VARCHAR(64) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	pid INTEGER NOT NULL, 
	version VARCHAR(40) NOT NULL, 
	started_at DATETIME NOT NULL, 
	seen_at DATETIME NOT NULL, 
	stopped_at DATETIME, 
	stop_reason VARCHAR(40), 
	concurrency_wanted INTEGER NOT NULL, 
	concurrency INTEGER NOT NULL, 
	draining BOOLEAN NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "nodes" VALUES('node-of-then','pve-ops',7,'then','2026-11-26 17:54:13.186795','2026-11-26 17:54:13.186795',NULL,NULL,8,8,0);
INSERT INTO "nodes" VALUES('node-that-stopped','pve-ops',6,'then','2026-11-26 17:54:13.186795','2026-11-26 17:54:13.186795','2026-11-26 17:54:13.186795','max_runtime',8,2,1);
CREATE TABLE runs (
	id INTEGER NOT NULL, 
	job_id INTEGER NOT NULL, 
	ident VARCHAR(64) NOT NULL, 
	attempt INTEGER NOT NULL, 
	playbook VARCHAR(100) NOT NULL, 
	started_at DATETIME NOT NULL, 
	ended_at DATETIME, 
	rc INTEGER, 
	status VARCHAR(20), 
	reason TEXT, 
	folder TEXT, 
	upids JSON, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE, 
	UNIQUE (ident)
);
INSERT INTO "runs" VALUES(1,2,'create-reported',1,'create.yml','2026-11-26 17:54:13.304378','2026-11-26 17:54:13.313743',0,'successful','','artifacts/create-reported','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(2,3,'create-container',1,'create.yml','2026-11-26 17:54:13.332034','2026-11-26 17:54:13.333819',0,'successful','','artifacts/create-container','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(3,4,'create-orphaned',1,'create.yml','2026-11-26 17:54:13.350954','2026-11-26 17:54:13.352812',0,'successful','','artifacts/create-orphaned','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(4,7,'create-due',1,'create.yml','2026-11-26 17:54:13.404258','2026-11-26 17:54:13.410659',0,'successful','','artifacts/create-due','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(5,11,'create-deleted',1,'create.yml','2026-11-26 17:54:13.467201','2026-11-26 17:54:13.469167',0,'successful','','artifacts/create-deleted','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(6,12,'delete-deleted',1,'delete.yml','2026-11-26 17:54:13.484435','2026-11-26 17:54:13.485767',0,'successful','','artifacts/delete-deleted','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(7,13,'create-purged',1,'create.yml','2026-11-26 17:54:13.500002','2026-11-26 17:54:13.501834',0,'successful','','artifacts/create-purged','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(8,14,'delete-purged',1,'delete.yml','2026-11-26 17:54:13.508870','2026-11-26 17:54:13.510133',0,'successful','','artifacts/delete-purged','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(9,15,'delete-purged-local',1,'delete.yml','2026-11-26 17:54:13.525583','2026-11-26 17:54:13.526891',0,'successful','','artifacts/delete-purged-local','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(10,16,'create-purge-now',1,'create.yml','2026-11-26 17:54:13.537754','2026-11-26 17:54:13.540857',0,'successful','','artifacts/create-purge-now','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(11,17,'delete-purge-now',1,'delete.yml','2026-11-26 17:54:13.551904','2026-11-26 17:54:13.556052',0,'successful','','artifacts/delete-purge-now','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(12,19,'create-later',1,'create.yml','2026-11-26 17:54:13.569892','2026-11-26 17:54:13.580122',0,'successful','','artifacts/create-later','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(13,20,'delete-later',1,'delete.yml','2026-11-26 17:54:13.607455','2026-11-26 17:54:13.608780',0,'successful','','artifacts/delete-later','["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]');
INSERT INTO "runs" VALUES(14,21,'create-cloning',1,'create.yml','2026-11-26 17:54:13.630396',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(15,22,'create-cancelled',1,'create.yml','2026-11-26 17:54:13.707663',NULL,NULL,NULL,NULL,NULL,NULL);
CREATE UNIQUE INDEX ix_jobs_one_processing_per_service ON jobs (service_id) WHERE status = 'processing';
CREATE INDEX ix_jobs_to_claim ON jobs (priority DESC, core_created_at, id) WHERE status = 'pending';
CREATE INDEX ix_jobs_service ON jobs (service_id);
CREATE INDEX ix_jobs_ended ON jobs (finished_at, status) WHERE status IN ('completed', 'failed');
CREATE INDEX ix_jobs_to_report ON jobs (finished_at) WHERE report_state = 'due';
CREATE UNIQUE INDEX ix_mappings_one_per_service ON mappings (service_id) WHERE state != 'deleted';
CREATE UNIQUE INDEX ix_mappings_one_per_vmid ON mappings (cluster, vmid) WHERE state != 'deleted';
CREATE INDEX ix_runs_job ON runs (job_id);
CREATE INDEX ix_runs_started ON runs (started_at);
CREATE INDEX ix_audit_subject ON audit (subject_kind, subject_id);
CREATE TRIGGER audit_keeps_rows_unchanged BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit table is append-only'); END;
CREATE TRIGGER audit_keeps_rows BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit table is append-only'); END;
CREATE TRIGGER audit_takes_no_number_twice BEFORE INSERT ON audit WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) BEGIN SELECT RAISE(ABORT, 'the audit table is append-only'); END;
COMMIT;

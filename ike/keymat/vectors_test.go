package keymat

import "tandem/internal/ipsec"

// ikev2KDFVectors are from NIST's CAVP for the IKEv2 KDF of SP 800-135. dkm is
// prf+(SKEYSEED, Ni | Nr | SPIi | SPIr), child and childDH are KEYMAT without and
// with a key exchange; all three may stop in the middle of a key.
var ikev2KDFVectors = []struct {
	name                     string
	suite                    ipsec.Suite
	ni, nr                   string
	spis                     ipsec.IKESPIs
	gir, girNew              string
	skeyseed, dkm            string
	child, childDH, rekeySKS string
}{
	{
		name:     "SHA-1",
		suite:    ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 128, PRF: ipsec.PRFHMACSHA1, Integ: ipsec.INTEGHMACSHA1_96},
		ni:       "32b50d5f4a3763f3",
		nr:       "9206a04b26564cb1",
		spis:     ipsec.IKESPIs{I: 0x34c9e7c188868785, R: 0x3ff77d760d2b2199},
		gir:      "4b2c1f971981a8ad8d0abeafabf38cf75fc8349c148142465ed9c8b516b8be52",
		girNew:   "863f3c9d06efd39d2b907b97f8699e5dd5251ef64a2a176f36ee40c87d4f9330",
		skeyseed: "a9a7b222b59f8f48645f28a1db5b5f5d7479cba7",
		dkm: "a14293677cc80ff8f9cc0eee30d895da9d8f405666e30ef0dfcb63c634a46002a2a63080e514a062768b76606f9fa5e9" +
			"92204fc5a670bde3f10d6b027113936a5c55b648a194ae587b0088d52204b702c979fa280870d2ed41efa9c549fd1119" +
			"8af1670b143d384bd275c5f594cf266b05ebadca855e4249520a441a81157435a7a56cc4",
		child: "8059e3ee8810e6c3a91bc8bcd2a7a41151b8d0e6ae239c7b38093ad85ef4c5811a8e7b5d1cdabd9560b2d5e092d1f24e" +
			"2d4b85eccdf0ad0dc9abd94b51ee71814ca6dbc8bb51b6309f5b9545c7eb35cf5580b1e521a8fe20754a2d883ba0c2cf" +
			"285f524aea6545b33106bc03e614296d319d41d4b50b3f510b1c0a22f3e664994d234cb4",
		childDH: "bb43244c1860ad65ee1e211ffe8bb3661750c8f89cb9f547df7f4fa61d37301628190e38c66232eab4b3ab14c400a519" +
			"7dd3730ed4820a8a10394d51e1c0400052f63ebd36b0e7ef53aaed31eba4a5080d7d4b5666023a8bbb5ffb7857240f9a" +
			"05884d1b7d2f933708450b7b3288f1fc863ab49fa901227cffc06e27899c7054d56fd74c",
		rekeySKS: "63e81194946ebd05df7df5ebf5d8750056bf1f1d",
	},
	{
		name:  "SHA-256",
		suite: ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 256, PRF: ipsec.PRFHMACSHA256, Integ: ipsec.INTEGHMACSHA256_128},
		ni:    "ed80dc79912c32a9",
		nr:    "35fb6d1a3feac078",
		spis:  ipsec.IKESPIs{I: 0x47c1858efc932ea4, R: 0x606fd05609624002},
		gir: "42968e5d0ccc3cfc5a3e4bc1bba370cea1fae0d54c49ccba34b2bee804beeb2e9e8c57a4e01bd45102cf2433aacc6cfe" +
			"c06792f363e5170e6aa6650274e906648e449d27a8f00b5b44261982c9835c748a751ec5138eaacc5e025661339538a6" +
			"1bf418e454699e19c32db8d9ce5dd86b220f1e89afc5872e68be36cb1a0c8866",
		skeyseed: "37fde90b81d63692620f67367b62092e3efdc6a03509137d731004767ff35010",
		dkm: "63d018a08f7a29daa7d1f92cb63f45fa39bbaf5e5f1a78139613bb891e3e6bf9d0448f7c74e05b4c1a25c0b61e62c875" +
			"e852f287e192d4ae536112db5197216400bd5e123470efc15f53161865fe8b19a1416518a157d651ecd2caddab6a9eae" +
			"6a27a55af088218d5156edaa9789f934d9836ed43edffda553822202ff9f7d4860ca72e0",
	},
	{
		name:  "SHA-384",
		suite: ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 256, PRF: ipsec.PRFHMACSHA384, Integ: ipsec.INTEGHMACSHA384_192},
		ni:    "d672b0bc852829b9",
		nr:    "3509f3b724706364",
		spis:  ipsec.IKESPIs{I: 0x0f9a016d7b22223c, R: 0x85f710daf8b982d8},
		gir: "4df040b70978629c49437cff41a0d46cbea68c8d75b370ffc11d7b387144ea83bb5903fbb92e473df50a9b19ea43e9c2" +
			"f3da9a849c03864276c6f264ecf02a60d40ba65c06656b633f02a87427e928eb66a2dabd9dc05744717bcaf7ae78c296" +
			"872f5c48d1a8120c2155b70c565ce271998e3e44af263d487ea3ba7f56132d7d",
		skeyseed: "54436a9ea95d6ff79b967f4b07f6de976a376e8ea26aa9574709afc60243c9c141da4ca0e158e627a75ea87f6feb07ef",
		dkm: "10b00a654643b3b985764f86e23ef62431122fcc96de16e338a372bee49391db1f83a7358c080380abbf4af47cdb83b9" +
			"530343168f7dbc9221260e1546c6b383e2235d2705a727f0b41aebf6a1b4c61cb460660152a17ba74c20d5191ba68417" +
			"94945270d829587b7f3294639ea7b77149e1d07230ac16e0cd5ab236fa3212bd569ee70f",
	},
	{
		name:  "SHA-512",
		suite: ipsec.Suite{Encr: ipsec.ENCRAESCBC, KeyBits: 256, PRF: ipsec.PRFHMACSHA512, Integ: ipsec.INTEGHMACSHA512_256},
		ni:    "df7931db9b429e10",
		nr:    "b8aa8e4d46042393",
		spis:  ipsec.IKESPIs{I: 0x9ba40af9157f4792, R: 0x5383c7cd3d1046e6},
		gir: "1e3b007d2da913ca60ecc98c25a22db08073d5c35c11b2524b298a922b6abfe6acf7359db66ae5f85d67aacff686419c" +
			"d8666d05ae7977cefad7f54dd8e312a8e8e5e0370f88142fbdd659dd6fde22bdd531f5402881a8de85c1024e595ec93c" +
			"575618af7fd3dbac7982919078d71cc13eff1910a032750e1ff428675de189ee",
		skeyseed: "daf9bd6f2f912da553867966af386e67909a8df0ca7e84b83b355cb7d7f1026f17d8ea34b5d57fd0d1ba389528fca1e8" +
			"1d1c8ce511b28a2458241143fee30ccc",
		dkm: "919a75deaeccbd393bebc89615f8a215edb7073b2319d86740221eee7a2deb92509044d7e61fcb1bf9676b3881c7ced4" +
			"9e6bba1549da3113601677a2445d91ac13a597335782dd3a9cf496d9e19b932f27dd35e36f8070d232d0a3b3f4c4a0b4" +
			"ba4470778dc090f31f52ab1b6d81e4c7dfb35063ad96c327adcdbde714cc9a6b5ef049b8",
	},
}

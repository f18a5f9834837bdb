package message

import "strconv"

// name returns the registry's name of v, or its number.
func name[T ~uint8 | ~uint16](names map[T]string, v T) string {
	if s, ok := names[v]; ok {
		return s
	}
	return strconv.Itoa(int(v))
}

// String is the name in IANA's registry, e.g. CREATE_CHILD_SA, or the number.
func (t ExchangeType) String() string { return name(exchangeNames, t) }

// String is the notation of RFC 7296 §3.2, e.g. IDi, or the number.
func (t PayloadType) String() string { return name(payloadNames, t) }

// String is the name in IANA's registry, e.g. INVALID_KE_PAYLOAD, or the number.
func (t NotifyType) String() string { return name(notifyNames, t) }

// IsError says whether the type reports an error (RFC 7296 §3.10.1).
func (t NotifyType) IsError() bool { return t < 16384 }

// String is the name in IANA's registry, e.g. ID_FQDN, or the number.
func (t IDType) String() string { return name(idNames, t) }

// String is the name in IANA's registry, or the number.
func (m AuthMethod) String() string { return name(authNames, m) }

var exchangeNames = map[ExchangeType]string{
	IKESAInit:     "IKE_SA_INIT",
	IKEAuth:       "IKE_AUTH",
	CreateChildSA: "CREATE_CHILD_SA",
	Informational: "INFORMATIONAL",
	38:            "IKE_SESSION_RESUME",
	Intermediate:  "IKE_INTERMEDIATE",
	FollowupKE:    "IKE_FOLLOWUP_KE",
}

var payloadNames = map[PayloadType]string{
	NoNextPayload: "none",
	TypeSA:        "SA",
	TypeKE:        "KE",
	TypeIDi:       "IDi",
	TypeIDr:       "IDr",
	TypeCERT:      "CERT",
	TypeCERTREQ:   "CERTREQ",
	TypeAUTH:      "AUTH",
	TypeNonce:     "Nonce",
	TypeNotify:    "N",
	TypeDelete:    "D",
	TypeVendorID:  "V",
	TypeTSi:       "TSi",
	TypeTSr:       "TSr",
	TypeSK:        "SK",
	TypeCP:        "CP",
	TypeEAP:       "EAP",
	TypeSKF:       "SKF",
}

var idNames = map[IDType]string{
	IDIPv4:    "ID_IPV4_ADDR",
	IDFQDN:    "ID_FQDN",
	IDRFC822:  "ID_RFC822_ADDR",
	IDIPv6:    "ID_IPV6_ADDR",
	IDDERASN1: "ID_DER_ASN1_DN",
	10:        "ID_DER_ASN1_GN",
	IDKeyID:   "ID_KEY_ID",
}

var authNames = map[AuthMethod]string{
	AuthRSA:       "RSA Digital Signature",
	AuthPSK:       "Shared Key Message Integrity Code",
	3:             "DSS Digital Signature",
	AuthECDSA256:  "ECDSA with SHA-256 on the P-256 curve",
	AuthECDSA384:  "ECDSA with SHA-384 on the P-384 curve",
	AuthECDSA521:  "ECDSA with SHA-512 on the P-521 curve",
	12:            "Generic Secure Password Authentication Method",
	13:            "NULL Authentication",
	AuthSignature: "Digital Signature",
}

var notifyNames = map[NotifyType]string{
	UnsupportedCriticalPayload: "UNSUPPORTED_CRITICAL_PAYLOAD",
	InvalidIKESPI:              "INVALID_IKE_SPI",
	InvalidMajorVersion:        "INVALID_MAJOR_VERSION",
	InvalidSyntax:              "INVALID_SYNTAX",
	InvalidMessageID:           "INVALID_MESSAGE_ID",
	InvalidSPI:                 "INVALID_SPI",
	NoProposalChosen:           "NO_PROPOSAL_CHOSEN",
	InvalidKEPayload:           "INVALID_KE_PAYLOAD",
	AuthenticationFailed:       "AUTHENTICATION_FAILED",
	SinglePairRequired:         "SINGLE_PAIR_REQUIRED",
	NoAdditionalSAs:            "NO_ADDITIONAL_SAS",
	InternalAddressFailure:     "INTERNAL_ADDRESS_FAILURE",
	FailedCPRequired:           "FAILED_CP_REQUIRED",
	TSUnacceptable:             "TS_UNACCEPTABLE",
	InvalidSelectors:           "INVALID_SELECTORS",
	UnacceptableAddresses:      "UNACCEPTABLE_ADDRESSES",
	UnexpectedNATDetected:      "UNEXPECTED_NAT_DETECTED",
	42:                         "USE_ASSIGNED_HoA",
	TemporaryFailure:           "TEMPORARY_FAILURE",
	ChildSANotFound:            "CHILD_SA_NOT_FOUND",
	45:                         "INVALID_GROUP_ID",
	46:                         "AUTHORIZATION_FAILED",
	StateNotFound:              "STATE_NOT_FOUND",
	48:                         "TS_MAX_QUEUE",

	InitialContact:             "INITIAL_CONTACT",
	SetWindowSize:              "SET_WINDOW_SIZE",
	AdditionalTSPossible:       "ADDITIONAL_TS_POSSIBLE",
	IPCompSupported:            "IPCOMP_SUPPORTED",
	NATDetectionSourceIP:       "NAT_DETECTION_SOURCE_IP",
	NATDetectionDestinationIP:  "NAT_DETECTION_DESTINATION_IP",
	Cookie:                     "COOKIE",
	UseTransportMode:           "USE_TRANSPORT_MODE",
	HTTPCertLookupSupported:    "HTTP_CERT_LOOKUP_SUPPORTED",
	RekeySA:                    "REKEY_SA",
	ESPTFCPaddingNotSupported:  "ESP_TFC_PADDING_NOT_SUPPORTED",
	NonFirstFragmentsAlso:      "NON_FIRST_FRAGMENTS_ALSO",
	MobikeSupported:            "MOBIKE_SUPPORTED",
	AdditionalIP4Address:       "ADDITIONAL_IP4_ADDRESS",
	AdditionalIP6Address:       "ADDITIONAL_IP6_ADDRESS",
	NoAdditionalAddresses:      "NO_ADDITIONAL_ADDRESSES",
	UpdateSAAddresses:          "UPDATE_SA_ADDRESSES",
	Cookie2:                    "COOKIE2",
	NoNATsAllowed:              "NO_NATS_ALLOWED",
	16403:                      "AUTH_LIFETIME",
	16404:                      "MULTIPLE_AUTH_SUPPORTED",
	16405:                      "ANOTHER_AUTH_FOLLOWS",
	16406:                      "REDIRECT_SUPPORTED",
	16407:                      "REDIRECT",
	16408:                      "REDIRECTED_FROM",
	16409:                      "TICKET_LT_OPAQUE",
	16410:                      "TICKET_REQUEST",
	16411:                      "TICKET_ACK",
	16412:                      "TICKET_NACK",
	16413:                      "TICKET_OPAQUE",
	16414:                      "LINK_ID",
	16415:                      "USE_WESP_MODE",
	16416:                      "ROHC_SUPPORTED",
	16417:                      "EAP_ONLY_AUTHENTICATION",
	ChildlessSupported:         "CHILDLESS_IKEV2_SUPPORTED",
	16419:                      "QUICK_CRASH_DETECTION",
	MessageIDSyncSupported:     "IKEV2_MESSAGE_ID_SYNC_SUPPORTED",
	ReplayCounterSyncSupported: "IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED",
	MessageIDSync:              "IKEV2_MESSAGE_ID_SYNC",
	ReplayCounterSync:          "IPSEC_REPLAY_COUNTER_SYNC",
	16424:                      "SECURE_PASSWORD_METHODS",
	FragmentationSupported:     "IKEV2_FRAGMENTATION_SUPPORTED",
	SignatureHashAlgorithms:    "SIGNATURE_HASH_ALGORITHMS",
	16432:                      "CLONE_IKE_SA_SUPPORTED",
	16433:                      "CLONE_IKE_SA",
	16434:                      "PUZZLE",
	UsePPK:                     "USE_PPK",
	PPKIdentity:                "PPK_IDENTITY",
	NoPPKAuth:                  "NO_PPK_AUTH",
	IntermediateSupported:      "INTERMEDIATE_EXCHANGE_SUPPORTED",
	16439:                      "IP4_ALLOWED",
	16440:                      "IP6_ALLOWED",
	AdditionalKeyExchange:      "ADDITIONAL_KEY_EXCHANGE",
	16442:                      "USE_AGGFRAG",
	TandemNetworkID:            "TANDEM_NETWORK_ID",
	TandemInterfaceAddress:     "TANDEM_INTERFACE_ADDRESS",
}

import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.models.embeddings.EmbeddingCreateParams;
import java.io.IOException;
import java.util.List;

/** openai-java. */
final class OpenAi extends Program {
    static List<List<Float>> embed(List<String> texts) {
        // docs: begin
        OpenAIClient client = OpenAIOkHttpClient.builder().baseUrl(BASE_URL + "/v1").apiKey(API_KEY).build();
        var request = EmbeddingCreateParams.builder().model(MODEL).inputOfArrayOfStrings(texts).build();
        var answer = client.embeddings().create(request);
        return answer.data().stream().map(item -> item.embedding()).toList();
        // docs: end
    }

    public static void main(String[] arguments) throws IOException {
        run(OpenAi::embed);
        System.exit(0); // the client's threads would keep the program running for a minute
    }
}
